"""Mechanism: walk a module tree, observe it, swap its modules. Every table arrives as an argument."""
