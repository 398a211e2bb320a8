"""Carries blobs to the coordinator and back: a few at a time, in order, and again after a cut.

What is carried has a name that its bytes must have, so a cut costs the blobs that were on their
way and no others: afterwards the coordinator is asked again what it lacks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from .blobs import MAX_BLOBS, Blob, pack, unpack_into
from .clock import monotonic_s
from .errors import BlobMismatch, PayloadTooLarge, ProtocolError, TransportError
from .link import delay_s
from .resources import GIB, format_bytes
from .rest import Rest
from .schemas import BlobRef, MissingBlobs, WantedBlobs

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the raw bytes that have travelled, and with how many have to.

After a cut the first number may fall: what was on its way travels again.
"""

MAX_DOWNLOAD_BYTES: Final = 4 * GIB
_AT_ONCE: Final = 3  # one is packed or checked while another travels and a third is stored


async def upload(
    rest: Rest,
    user: str,
    blobs: Sequence[Blob],
    *,
    patience_s: float,
    on_progress: Progress | None = None,
) -> int:
    """Put those of ``blobs`` that the coordinator does not have for ``user``.

    Returns:
        the bytes that travelled, as they were packed.

    Raises:
        PayloadTooLarge: there are more than one job may name.
        BlobMismatch: the data changed meanwhile.
        TransportError: the coordinator was lost and stayed away for ``patience_s``.
    """
    if len(blobs) > MAX_BLOBS:
        raise PayloadTooLarge(
            f"The job would need {len(blobs):,} blobs; at most {MAX_BLOBS:,} travel with one job.",
            blobs=len(blobs),
            limit=MAX_BLOBS,
        )
    return await _Upload(rest, user, blobs, _Patience(patience_s), on_progress).run()


class _Upload:
    """One upload: what is left of it, and what it has cost."""

    def __init__(
        self,
        rest: Rest,
        user: str,
        blobs: Sequence[Blob],
        patience: _Patience,
        on_progress: Progress | None,
    ) -> None:
        self._rest, self._user, self._patience = rest, user, patience
        self._on_progress = on_progress
        self._left = {blob.ref.digest: blob for blob in blobs}
        self._left_bytes = self._total_bytes = self._travelled_bytes = 0
        self._on_the_way: dict[str, int] = {}  # raw bytes by digest

    async def run(self) -> int:
        """Put what is missing; return the bytes that travelled."""
        while self._left:
            missing = (await self._patience.spend_on(self._ask)).missing
            self._left = {digest: self._left[digest] for digest in missing if digest in self._left}
            self._left_bytes = sum(blob.ref.size for blob in self._left.values())
            self._total_bytes = self._total_bytes or self._left_bytes
            try:
                await _work_off(self._left.values(), self._put)
            except TransportError as exc:
                await self._patience.lose(exc)
        return self._travelled_bytes

    async def _ask(self) -> MissingBlobs:
        wanted = WantedBlobs(user_id=self._user, digests=tuple(self._left))
        return await self._rest.post("/blobs/missing", wanted, MissingBlobs)

    async def _put(self, blob: Blob) -> None:
        ref = blob.ref
        packed = await asyncio.to_thread(pack, blob.data)

        def on_piece(sent_bytes: int) -> None:
            self._on_the_way[ref.digest] = ref.size * sent_bytes // len(packed.body)
            self._tell()

        try:
            await self._rest.put_blob(self._user, ref, packed, on_piece)
        finally:
            self._on_the_way.pop(ref.digest, None)
        self._patience.renew()
        self._travelled_bytes += len(packed.body)
        self._left_bytes -= ref.size
        del self._left[ref.digest]
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            left_bytes = self._left_bytes - sum(self._on_the_way.values())
            self._on_progress(self._total_bytes - left_bytes, self._total_bytes)


async def download(
    rest: Rest,
    user: str,
    job_id: str,
    refs: Sequence[BlobRef],
    *,
    patience_s: float,
    on_progress: Progress | None = None,
    limit_bytes: int = MAX_DOWNLOAD_BYTES,
) -> bytearray:
    """Return the bytes of these blobs of a job, joined in order; each is checked by its name.

    Raises:
        PayloadTooLarge: they come to more than ``limit_bytes``.
        NotFound: the job does not refer to one of them, or is not ``user``'s.
        TransportError: the coordinator was lost and stayed away for ``patience_s``.
        ProtocolError: what came is not what was named.
    """
    total_bytes = sum(ref.size for ref in refs)
    if total_bytes > limit_bytes:
        raise PayloadTooLarge(
            f"The result has {format_bytes(total_bytes)}; at most {format_bytes(limit_bytes)} are"
            " taken home.",
            hint="Bring home less: name what you need with --out, or save the rest with --fetch.",
            size_bytes=total_bytes,
            limit_bytes=limit_bytes,
        )
    whole = bytearray(total_bytes)
    places: dict[BlobRef, list[int]] = {}  # a blob may occur more than once
    at = 0
    for ref in refs:
        places.setdefault(ref, []).append(at)
        at += ref.size
    patience = _Patience(patience_s)
    here_bytes = 0
    with memoryview(whole) as view:

        def lay_down(ref: BlobRef, pieces: Sequence[bytes], is_zstd: bool) -> None:
            first, *others = (view[place : place + ref.size] for place in places[ref])
            with first:
                unpack_into(first, pieces, ref, is_zstd=is_zstd)
                for other in others:
                    other[:] = first
                    other.release()

        async def get(ref: BlobRef) -> None:
            nonlocal here_bytes
            pieces, is_zstd = await patience.spend_on(lambda: rest.get_blob(user, job_id, ref))
            try:
                await asyncio.to_thread(lay_down, ref, pieces, is_zstd)
            except BlobMismatch as exc:
                raise ProtocolError(
                    exc.message,
                    hint="Run the cell again; if it comes again, the coordinator's disk is faulty.",
                ) from None
            here_bytes += ref.size * len(places[ref])
            if on_progress is not None:
                on_progress(here_bytes, total_bytes)

        await _work_off(list(places), get)
    return whole


class _Patience:
    """How long a coordinator that is lost is waited for, from its loss on."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.renew()

    def renew(self) -> None:
        """Begin anew: it has answered."""
        self._until_s: float | None = None
        self._tries = 0

    async def lose(self, error: TransportError) -> None:
        """Wait a little, longer each time; raise ``error`` when it took too long."""
        if self._until_s is None:
            self._until_s = monotonic_s() + self._patience_s
        if monotonic_s() >= self._until_s:
            raise error
        await asyncio.sleep(delay_s(self._tries))
        self._tries += 1

    async def spend_on(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until it is answered."""
        while True:
            try:
                answer = await ask()
            except TransportError as exc:
                await self.lose(exc)
            else:
                self.renew()
                return answer


async def _work_off(items: Iterable[T], carry: Callable[[T], Awaitable[None]]) -> None:
    """Carry every item, a few at once, begun in order; the first error ends the others."""
    waiting = deque(items)

    async def work() -> None:
        while waiting:
            await carry(waiting.popleft())

    tasks = [asyncio.create_task(work()) for _ in range(min(_AT_ONCE, len(waiting)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
