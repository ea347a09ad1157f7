"""Which module becomes which: pure data, in names instead of classes."""
