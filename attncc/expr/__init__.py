"""Scalar expressions: nodes, the table of operations, rules, intervals, evaluation. Both IRs are built on them."""
