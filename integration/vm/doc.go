// Package vm tests nemoclaw on another machine than this one: another kernel,
// systemd as the first process, cgroup version 2 alone, an engine of another
// age. The machine is emulated, and gone when the tests end. Nothing is
// installed here, and no cable leads out of it.
//
//	go test ─┬─ fetch.sh: qemu, two kernels and a file system, in the cache
//	         ├─ go test -c: the tests of other packages
//	         └─ qemu ══ serial line ══ a shell as root, which is told what to run
//
// It runs only by make test-vm, as root, on Debian or a relative of it.
//
// # Why
//
// The processor is emulated too (-accel tcg), since a machine that is itself
// rented seldom lends its own; that is ten times slower than this one.
// The kernels have drivers for NVMe and ext4 built in, so that no initramfs is
// needed; and a serial line needs no driver, no network and no encryption.
package vm
