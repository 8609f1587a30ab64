def tales(): return []
