"""Tables of an application inside frameworks: a module each, which needs its library.

- :mod:`sqlvec.integrations.langchain`: ``pip install 'sqlvec[langchain]'``
- :mod:`sqlvec.integrations.llama_index`: ``pip install 'sqlvec[llama-index]'``
"""
