# What `docker import` gets where no registry can be reached.
suite=bookworm
variant=minbase
packages=bash,coreutils,grep,sed,gawk,jq
