"""Tables and queries. Functions take a Session or Connection and never commit: the caller owns the transaction."""
