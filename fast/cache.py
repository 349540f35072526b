"""Keys and values of the positions that were read, so that generation reads each position once."""


class KeysValues:
    """Those of one attention layer, in buffers [b, h, size, k] of their final size.

    Attributes:
        length: positions held so far.
    """

    def __init__(self, size):
        self.size, self.length = size, 0

    def extend(self, k, v):
        """Add k, v [b, h, t, k] of the newest positions; return all so far, [b, h, j, k] each."""
        if self.length == 0:
            self.k, self.v = (x.new_empty(*x.shape[:2], self.size, x.shape[3]) for x in (k, v))
        end = self.length + k.shape[2]
        self.k[:, :, self.length:end] = k
        self.v[:, :, self.length:end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]
