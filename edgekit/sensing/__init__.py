"""Compressed sensing: fewer numbers than the signal has, and what can be done with them.

* `acquisition`: a front-end that measures y = A x, in front of a student that reads the measurements;
* `deployment`: the student split at the measurements, for the node that sends and the hub that reads them;
* `recovery`: x back from y by ISTA, FISTA, basis pursuit or OMP in a basis (`bases`);
* `unrolled`: recovery of images as a network that every backend runs;
* `phase`: where recovery by l1 must succeed, and where it does;
* `weights`: sparse weights from random projections, beside entropy coding.
"""
