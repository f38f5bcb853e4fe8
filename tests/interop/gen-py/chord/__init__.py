__all__ = ['ttypes', 'constants', 'KVStore', 'Tetrachord', 'Inspect']
