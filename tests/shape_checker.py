"""The run-time type checker of the tests: beartype, for which an int may stand where a float may."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
