"""Policy: the default tables, the engine, and what is said when something quietly did nothing."""
