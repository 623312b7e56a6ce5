"""What only one process does at a time, of all those that use a database: migrating it, and making what there is once."""

from sqlalchemy import Connection, text

STARTING = 0x_FED_C0DE
"""One number for all such steps of this program, among PostgreSQL's advisory locks"""


AUDITING = STARTING + 1
"""And one for the end of the audit log"""


def wait_alone(connection: Connection, key: int = STARTING) -> None:
    """Hold, until this transaction ends, what others wait for at the same place. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
