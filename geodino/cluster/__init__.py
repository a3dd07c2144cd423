"""Many processes and machines by Dask: finding or starting them, looking them over, what each of them holds."""
