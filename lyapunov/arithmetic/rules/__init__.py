"""Rules of the bounded interpreter, each a function that carries its inequality.

A rule is told what the execution declares and the operands with their errors; what it
returns holds every result that such an execution may have. Audited a module at a time:
`entries`, `functions`, `rows`, `sums`, `scans`, `storage`.
"""
