package kaudit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// room is what the kernel keeps of unread records, in bytes of its own
	// memory: some six thousand of them.
	room = 8 << 20
	// headerSize is that of struct nlmsghdr (netlink(7)).
	headerSize = 16
	// maxMessage is the longest message, in bytes: MAX_AUDIT_MESSAGE_LENGTH
	// and its header.
	maxMessage = 8970 + headerSize
)

// Open returns a socket, which does not block, on which the kernel's records of
// the types above arrive from now on. It takes CAP_AUDIT_READ in the first user
// namespace.
func Open() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_AUDIT)
	if err != nil {
		return nil, fmt.Errorf("cannot hear the kernel's audit records: %w", err)
	}
	if err := join(fd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot hear the kernel's audit records: %w", err)
	}
	return os.NewFile(uintptr(fd), "audit-records"), nil
}

func join(fd int) error {
	// Above net.core.rmem_max with CAP_NET_ADMIN.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room); err != nil {
			return err
		}
	}
	// A full socket goes on with the next record that fits, instead of with the
	// first one after it was emptied; Lost tells how many did not fit.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return err
	}
	code := typeFilter(Seccomp, LandlockAccess, LandlockDomain, Syscall)
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.AUDIT_NLGRP_READLOG - 1)})
}

// typeFilter lets messages of these types through and no others: on a host with
// an audit daemon most records are about something else. The type is a number
// of the host's byte order, and the filter's machine loads big-endian ones.
func typeFilter(types ...uint16) []unix.SockFilter {
	code := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}}
	for i, t := range types {
		code = append(code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(bits.ReverseBytes16(t)), Jt: uint8(len(types) - i)})
	}
	return append(code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: maxMessage})
}

// Read receives from Open's socket until it is empty, at most limit messages,
// and passes on the records among them. It returns unix.EAGAIN if it is empty.
func Read(fd, limit int, buf []byte, each func(Record)) error {
	for range limit {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
			continue
		}
		if err != nil {
			return err
		}
		// Records come from the kernel, whose address is 0.
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 || n < headerSize {
			continue
		}
		if r, err := Parse(binary.NativeEndian.Uint16(buf[4:]), buf[headerSize:n]); err == nil {
			each(r)
		}
	}
	return nil
}

// BufferSize is enough for Read, in bytes.
const BufferSize = maxMessage

// memInfo are the numbers of SO_MEMINFO (linux/sock_diag.h), of which the last
// is SK_MEMINFO_DROPS.
type memInfo [9]uint32

// Lost returns how many messages did not fit into Open's socket so far.
func Lost(fd int) (uint32, error) {
	var info memInfo
	size := uint32(len(info) * 4)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("cannot ask for lost audit records: %w", errno)
	}
	return info[8], nil
}
