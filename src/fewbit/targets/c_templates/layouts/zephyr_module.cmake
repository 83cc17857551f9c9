zephyr_library_named({{ name }})
zephyr_library_sources({{ name }}.c)
zephyr_include_directories(.)
