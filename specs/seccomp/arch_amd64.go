package seccomp

import (
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	auditArch = unix.AUDIT_ARCH_X86_64
	// x32Bit marks calls of the x32 ABI, which share the architecture
	// (__X32_SYSCALL_BIT, asm/unistd.h).
	x32Bit = 0x40000000
)

const nativeArch = oci.ArchX86_64
