# Thin: every target is a command of cargo's or of `cargo xtask` (tools/xtask), where the work and its help are.

PREFIX ?= /usr/local

.PHONY: build run test test-cri bench install uninstall guest check fmt

build:
	cargo build --workspace

run:
	cargo xtask run

test:
	cargo xtask test

# Pods, through the CRI. RUNTIME=runc|kata for that runtime alone.
test-cri:
	cargo test --package e2e --test cri -- $(if $(RUNTIME),$(RUNTIME)::)

bench:
	cargo xtask bench

install:
	cargo xtask install --prefix "$(PREFIX)" --destdir "$(DESTDIR)"

uninstall:
	cargo xtask uninstall --prefix "$(PREFIX)" --destdir "$(DESTDIR)"

# KERNEL=debian|source|<path of a vmlinux or bzImage>, DEFAULT=1 to make it the default image.
guest:
	cargo xtask guest $(if $(KERNEL),--kernel "$(KERNEL)") $(if $(DEFAULT),--default)

check:
	cargo xtask check

fmt:
	cargo fmt --all
