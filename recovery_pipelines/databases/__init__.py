"""Live databases of a drill: made or loaded, written to, described row by row, damaged.

What a database holds is described logically (`Contents`), because no backup of a database is equal
to it byte by byte, and because damage that its own checks do not see shows only there.
"""
