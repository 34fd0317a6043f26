"""The backbone in other tools' formats, with measured parity."""
