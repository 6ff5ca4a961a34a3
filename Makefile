# Thin: every target is a command of cargo's or of `cargo xtask` (tools/xtask), where the work and its help are.

PREFIX ?= /usr/local

.PHONY: build run test test-cri test-block test-factories test-driver fuzz bench install uninstall guest check fmt

build:
	cargo build --workspace

run:
	cargo xtask run

test:
	cargo xtask test

# Pods, through the CRI. RUNTIME=runc|kata for that runtime alone.
test-cri:
	cargo test --package e2e --test cri -- $(if $(RUNTIME),$(RUNTIME)::)

# The suite of containerd with all root file systems on block devices: SNAPSHOTTER=devmapper, or blockfile with containerd 2.
# `make test` has the cases about disks.
SNAPSHOTTER ?= devmapper
test-block:
	KATA_TEST_SNAPSHOTTER="$(SNAPSHOTTER)" cargo test --package e2e --test containerd -- kata::

# The suites of containerd, the CRI and podman with our runtime, three times: machines boot, are copies of a template, and were kept
# ready. FACTORY=boot|template|cache for that alone. `make test` has the CRI's on a template, and boots elsewhere; it builds what
# this needs. With `make -k` the others are run after one has failed.
FACTORY ?= boot template cache
test-factories: $(FACTORY:%=test-factory-%)
test-factory-%:
	KATA_TEST_FACTORY="$*" cargo test --package e2e --no-fail-fast --test containerd --test cri --test podman -- kata::

# The drivers' suite with a real program, and a short list end to end (docs/drivers.md): DRIVER=clh|firecracker BIN=<its path>,
# for Firecracker also JAILER=<its path>; GUEST=<directory of a vmlinux and initrd.img>, PARAMS=<for their kernel>, PATIENCE=<factor
# of every deadline>. Without BIN: the suite with doubles that are as strict as the descriptions in KATA_API_DIR.
DRIVER ?= clh
DRIVER_ENV = $(if $(BIN),$(if $(filter clh,$(DRIVER)),KATA_TEST_CLH,KATA_TEST_FIRECRACKER)="$(BIN)") \
	$(if $(JAILER),KATA_TEST_JAILER="$(JAILER)") $(if $(GUEST),KATA_GUEST_DIR="$(GUEST)") \
	$(if $(PARAMS),KATA_TEST_KERNEL_PARAMS="$(PARAMS)") $(if $(PATIENCE),KATA_TEST_PATIENCE="$(PATIENCE)")
test-driver:
	cargo build --package agent
	$(DRIVER_ENV) cargo test --package hypervisor --test drivers -- $(DRIVER):: --test-threads=1
	$(if $(JAILER),$(DRIVER_ENV) cargo test --package hypervisor --test drivers -- jailed:: --test-threads=1)
	$(if $(BIN),$(DRIVER_ENV) cargo test --package runtime --test integration -- --ignored --nocapture --test-threads=1 drivers::$(DRIVER))
	$(if $(JAILER),$(DRIVER_ENV) cargo test --package runtime --test integration -- --ignored --nocapture drivers::jailed)

# The parsers of what others say, driven by libFuzzer: TARGET=<part of a name>, TIME=<seconds for each>.
fuzz:
	cargo xtask fuzz $(if $(TIME),--time "$(TIME)") $(if $(TARGET),"$(TARGET)")

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
