"""D3.3 section 6.2 measured again, honestly: the protocol is in `cells`, a table is one module (docs/reproduce.md)."""
