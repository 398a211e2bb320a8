"""The coordinator: stands between users and lenders, keeps jobs, output and credits right."""
