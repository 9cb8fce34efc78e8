"""What the papers of the parts promise, one file per part, mirroring `tessera/parts`.

A file holds a list CLAIMS of `Experiment`, `Exact` and `Cost` (`tessera.lab.experiment`) and loads no torch when it is
imported.
"""
