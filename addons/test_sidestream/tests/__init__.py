from . import (
    test_access,
    test_arguments,
    test_diagnosis,
    test_enqueue,
    test_environment,
    test_module,
    test_rpc,
    test_status,
    test_trap,
)
