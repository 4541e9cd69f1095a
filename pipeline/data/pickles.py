"""Ray Data's Arrow type of pickled Python objects, disarmed.

A column of a Parquet file can claim to be of this type. Where `ray.data` is imported, whoever then looks at a value of it, be it this
package, pandas or `datasets`, unpickles it, which is to run whatever the file's author wrote there. Nothing here needs the type.
"""

from contextlib import suppress

import pyarrow as pa

NAME = "ray.data.arrow_pickled_object"


class _Pickles(pa.ExtensionType):
    """The type's name without its meaning: a value is the bytes it is stored as."""

    def __init__(self, storage_type: pa.DataType = pa.large_binary()):
        super().__init__(storage_type, NAME)

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "_Pickles":
        return cls(storage_type)


def disarm() -> None:
    """Have Arrow read such columns as bytes in this process, whether Ray Data has been imported or will be.

    Ray finds the name taken and leaves it; its own refusal to read such files knows the type by its name and still stands.
    """
    with suppress(KeyError):
        pa.unregister_extension_type(NAME)
    pa.register_extension_type(_Pickles())
