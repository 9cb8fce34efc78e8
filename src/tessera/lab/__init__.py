"""Claims that run, and the evidence that they leave.

Layers, the lowest first; a module imports its own layer and those below:

    values         arms effects outcomes behaviour lab protocols.base experiment
    judge          judge
    evidence       claims source storage evidence works
    training       fit probe rows
    scenes         places captioned choices scenes
    models         composed speaker exact around contract preconditions hallucinating glimpses derived class_tower routing
                   further conversations protocols.tiny
    protocols      protocols givens
    fingerprints   fingerprints freshness local_lab
    runner         recording verify workers sample
    front          catalog compare pages
"""
