"""Nothing in, the kit's version out; the packaging and the bundle read it from this line."""

VERSION = "0.1.0"
