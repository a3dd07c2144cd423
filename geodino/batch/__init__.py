"""Many runs: a job for each scene, area or cell of a grid, shared by as many processes as there are, and its catalog.

The truth is small objects in the batch's own folder or bucket, each made once (`ledger`), so that whoever is killed
leaves nothing that another process could take for finished. `ledger.sqlite` is an index of them, for people to query.
"""
