from . import account_move, delivery_carrier, sale_order
