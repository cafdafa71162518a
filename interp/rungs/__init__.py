"""The equivalence ladder: is the difference of two conditions' states one vector, one map, or more?

`settings`: of `interp ladder`. `maps`: every rung, fitted from sums. `climbing`: maps fitted on one
half of the queries and scored on the others. `table`: the rows that come of it. `run`: all of it.
"""
