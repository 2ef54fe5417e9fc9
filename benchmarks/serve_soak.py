def soak(*a): return []
