"""Problems with verifiable answers, their order, and the prompts made from them."""
