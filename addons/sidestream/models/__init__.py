from . import (
    base,
    ir_module_module,
    res_company,
    sidestream_attempt,
    sidestream_job,
    sidestream_runner,
)
