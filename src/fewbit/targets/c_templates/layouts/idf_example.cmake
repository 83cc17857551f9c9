# Put the component's folder into the project's components/, this file and main.c into main/.
idf_component_register(SRCS "main.c" REQUIRES {{ name }})
