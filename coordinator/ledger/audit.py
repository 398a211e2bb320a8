"""Whether the books are right: everything that must hold, as one query each.

A finding is a sentence with the numbers in it; no finding means that no credit was created or
lost by work, and that every hold, charge and lease agrees with its job.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

# Each query returns the rows that break the rule.
CHECKS: Final[dict[str, str]] = {
    "credits of all accounts add up to zero": """
        SELECT total FROM (
            SELECT coalesce(sum(posted_ucr), 0)
                 + coalesce((SELECT sum(amount_ucr) FROM transfers t JOIN accounts a
                             ON a.id = t.credit_id WHERE a.kind <> 'user'), 0)
                 - coalesce((SELECT sum(amount_ucr) FROM transfers t JOIN accounts a
                             ON a.id = t.debit_id WHERE a.kind <> 'user'), 0) AS total
            FROM accounts) x
        WHERE total <> 0""",
    "a balance is the sum of its transfers": """
        SELECT a.id, a.posted_ucr FROM accounts a
        WHERE a.kind = 'user' AND a.posted_ucr <>
              coalesce((SELECT sum(amount_ucr) FROM transfers WHERE credit_id = a.id), 0)
            - coalesce((SELECT sum(amount_ucr) FROM transfers WHERE debit_id = a.id), 0)""",
    "mint and fee have no stored balance": """
        SELECT id FROM accounts WHERE kind <> 'user' AND (posted_ucr <> 0 OR held_ucr <> 0)""",
    "what is held is the sum of the open holds": """
        SELECT a.id, a.held_ucr FROM accounts a
        WHERE a.held_ucr <> coalesce((SELECT sum(amount_ucr) FROM holds
                                      WHERE account_id = a.id AND state = 'open'), 0)""",
    "no balance is below zero or below what is held": """
        SELECT id FROM accounts WHERE kind = 'user' AND (held_ucr < 0 OR posted_ucr < held_ucr)""",
    "what was captured is what was transferred": """
        SELECT h.id, h.captured_ucr FROM holds h
        WHERE h.captured_ucr <> coalesce((SELECT sum(amount_ucr) FROM transfers
                                          WHERE hold_id = h.id), 0)""",
    "only the mint creates, and only by grants": """
        SELECT t.id FROM transfers t JOIN accounts a ON a.id = t.debit_id
        WHERE (a.kind = 'mint') <> (t.kind = 'grant') OR a.kind = 'fee'""",
    "a hold is open exactly while its job lives": """
        SELECT j.public_id, j.state, h.state FROM jobs j JOIN holds h ON h.job_id = j.id
        WHERE (j.finished_us IS NULL) <> (h.state = 'open')""",
    "each job that needs a hold has one of that size, on its user's account": """
        SELECT j.public_id FROM jobs j LEFT JOIN holds h ON h.job_id = j.id
            LEFT JOIN accounts a ON a.id = h.account_id
        WHERE j.hold_ucr <> coalesce(h.amount_ucr, 0)
           OR (h.id IS NOT NULL AND a.user_id <> j.user_id)""",
    "a job costs what was captured for it, and its attempts add up to that": """
        SELECT j.public_id, j.cost_ucr FROM jobs j LEFT JOIN holds h ON h.job_id = j.id
        WHERE j.cost_ucr <> coalesce(h.captured_ucr, 0)
           OR j.cost_ucr <> coalesce((SELECT sum(charge_ucr) FROM attempts
                                      WHERE job_id = j.id), 0)""",
    "a running job has one live attempt, the newest, and no other job has any": """
        SELECT j.public_id, j.state FROM jobs j
        WHERE (SELECT count(*) FROM attempts a WHERE a.job_id = j.id
                 AND a.state IN ('leased', 'running')) <> (j.state = 'running')
           OR coalesce((SELECT max(n) FROM attempts a WHERE a.job_id = j.id), 0) <> j.attempt""",
    "a session is noted as open exactly while its job lives": """
        SELECT j.public_id, j.state FROM jobs j JOIN calls c ON c.job_id = j.id AND c.n = 0
        WHERE (j.finished_us IS NULL) <>
              EXISTS (SELECT 1 FROM open_sessions s WHERE s.job_id = j.id)""",
    "the calls of a session are numbered without a gap, and only the newest may be open": """
        SELECT j.public_id, c.n FROM calls c JOIN jobs j ON j.id = c.job_id
        WHERE (c.finished_us IS NULL AND (j.finished_us IS NOT NULL OR c.n <>
                  (SELECT max(n) FROM calls WHERE job_id = c.job_id)))
           OR (c.n > 0 AND NOT EXISTS (SELECT 1 FROM calls p
                  WHERE p.job_id = c.job_id AND p.n = c.n - 1))""",
}


def audit(tx: Connection) -> tuple[str, ...]:
    """Return what is wrong; nothing is, when it is empty."""
    findings = []
    for rule, query in CHECKS.items():
        rows = tx.execute(sa.text(query)).all()
        if rows:
            some = ", ".join(" ".join(map(str, row)) for row in rows[:5])
            findings.append(f"Not so: {rule}. {len(rows)} rows: {some}.")
    return tuple(findings)
