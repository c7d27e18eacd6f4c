-- Read by scripts/lint_lua.py, which checks the function library as Redis loads it: every file of lua/ in one chunk.
std = "lua51"
read_globals = {"redis", "cmsgpack", "struct"}
max_code_line_length = 120
max_comment_line_length = 132
max_string_line_length = 120
