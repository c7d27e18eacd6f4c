{
    "name": "Sidestream Demo: ship and invoice in the background",
    "summary": "Confirming a quotation sends it to a courier and prints its invoice, without keeping the user waiting",
    "version": "19.0.0.1.0",
    "category": "Technical",
    "license": "LGPL-3",
    "author": "Sidestream",
    "website": "https://github.com/sidestream/sidestream",
    "depends": ["sidestream", "sale_management", "stock", "account", "stock_delivery"],
    "external_dependencies": {"python": ["requests"]},
    "data": ["views/sale_order_views.xml"],
    "post_init_hook": "post_init_hook",
}
