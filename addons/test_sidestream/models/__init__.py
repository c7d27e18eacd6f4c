from . import test_sidestream_carrier, test_sidestream_order
