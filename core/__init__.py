"""What every layer may use: clock, ids, money, errors, settings, database, logging."""
