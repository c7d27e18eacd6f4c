"""Read and write the PostgreSQL tables; no other package knows them.

Every function takes a DB-API cursor of psycopg 3 or psycopg2 whose rows are tuples, runs in whatever transaction that
cursor has open, and commits nothing. Errors of the driver come out as they are (the caller may need their SQLSTATE);
:func:`sidestream.store.adapter.translate` turns them into :class:`~sidestream.errors.StoreError`.
"""
