package main

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

var kernelVerbs = map[string]verb{
	// sys NUMBER [ARG...]: a system call with plain numbers; "buf" is the
	// address of 4096 zero bytes.
	"sys": func(a []string) (string, error) {
		buf := make([]byte, 4096)
		var args [7]uintptr
		for i, s := range a {
			if s == "buf" {
				args[i] = uintptr(unsafe.Pointer(&buf[0]))
			} else {
				args[i] = number(s)
			}
		}
		r, _, e := unix.Syscall6(args[0], args[1], args[2], args[3], args[4], args[5], args[6])
		if e != 0 {
			return "", e
		}
		return fmt.Sprint(r), nil
	},
	// mount SOURCE TARGET TYPE FLAGS
	"mount": func(a []string) (string, error) {
		return "", unix.Mount(a[0], a[1], a[2], uintptr(number(a[3])), "")
	},
	"umount": func(a []string) (string, error) { return "", unix.Unmount(a[0], unix.MNT_DETACH) },
	// mount-writable PATH: clears the read-only attribute of a mount, which
	// Landlock does not mediate.
	"mount-writable": func(a []string) (string, error) {
		return "", unix.MountSetattr(unix.AT_FDCWD, a[0], 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	},
	// open-tree PATH: a detached copy of a mount.
	"open-tree": func(a []string) (string, error) {
		fd, err := unix.OpenTree(unix.AT_FDCWD, a[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err == nil {
			unix.Close(fd)
		}
		return "", err
	},
	"fsopen": func(a []string) (string, error) {
		fd, err := unix.Fsopen(a[0], unix.FSOPEN_CLOEXEC)
		if err == nil {
			unix.Close(fd)
		}
		return "", err
	},
	"end-first-thread": func([]string) (string, error) { endFirstThread(); return "", nil },
	"unshare":          func(a []string) (string, error) { return "", unix.Unshare(int(number(a[0]))) },
	// join PATH: setns(2).
	"join": func(a []string) (string, error) {
		fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Setns(fd, 0)
	},
	// ioctl FD REQUEST: with 64 bytes of which the first is a letter, as
	// TIOCSTI takes it to type into a terminal.
	"ioctl": func(a []string) (string, error) { return "", ioctl(number(a[0]), number(a[1])) },
	// ioctl-at PATH REQUEST: on what lies there, opened for reading.
	"ioctl-at": func(a []string) (string, error) {
		fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", ioctl(uintptr(fd), number(a[1]))
	},
	// personality NUMBER
	"personality": func(a []string) (string, error) {
		_, _, e := unix.Syscall(unix.SYS_PERSONALITY, number(a[0]), 0, 0)
		if e != 0 {
			return "", e
		}
		return "", nil
	},
	// clone FLAGS: a child that ends at once.
	"clone": func(a []string) (string, error) {
		pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, number(a[0])|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if e != 0 {
			return "", e
		}
		if pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		_, err := unix.Wait4(int(pid), nil, 0, nil)
		return "", err
	},
	// sysctl NAME VALUE: writes below /proc/sys.
	"sysctl": func(a []string) (string, error) {
		return "", os.WriteFile("/proc/sys/"+strings.ReplaceAll(a[0], ".", "/"), []byte(a[1]), 0)
	},
	// nest: a Landlock layer of its own, which every program may add.
	"nest": func([]string) (string, error) {
		attr := struct{ fs uint64 }{1}
		fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
		if e != 0 {
			return "", e
		}
		unix.Close(int(fd))
		return "", nil
	},
	"memory-executable": func([]string) (string, error) {
		m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err == nil {
			err = unix.Munmap(m)
		}
		return "", err
	},
	// sweep: every system call that can be tried without harm, with all
	// arguments -1: number=errno.
	"sweep": sweep,
}

// harmful are calls that end, stop, copy or slow the caller whatever their
// arguments are, or whose answer depends on who else lives.
var harmful = map[uintptr]bool{
	unix.SYS_EXIT: true, unix.SYS_EXIT_GROUP: true, unix.SYS_RT_SIGRETURN: true, unix.SYS_CLONE: true, unix.SYS_CLONE3: true,
	unix.SYS_SYNC: true, unix.SYS_RESTART_SYSCALL: true, unix.SYS_UMASK: true, unix.SYS_MUNLOCKALL: true, unix.SYS_RT_SIGSUSPEND: true,
	unix.SYS_SET_TID_ADDRESS: true, unix.SYS_KILL: true,
}

// lastCall is the number of the newest call that is tried (Linux 6.18).
const lastCall = 475

func sweep([]string) (string, error) {
	var out []string
	for nr := uintptr(0); nr <= lastCall; nr++ {
		if harmful[nr] || harmfulHere(nr) {
			continue
		}
		all := ^uintptr(0)
		family := all
		if nr == unix.SYS_SOCKETPAIR {
			family = unix.AF_UNIX // of no other family is there a pair
		}
		_, _, e := unix.RawSyscall6(nr, family, all, all, all, all, all)
		out = append(out, fmt.Sprintf("%d=%d", nr, e))
	}
	if len(out) == 0 {
		return "", errors.New("nothing was tried")
	}
	return strings.Join(out, " "), nil
}

func ioctl(fd, request uintptr) error {
	b := [64]byte{'x'}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(&b[0]))); e != 0 {
		return e
	}
	return nil
}

// endFirstThread ends the thread that the process has its number of (main). The
// others go on, in what looks like a zombie to whoever knows no more than the
// number (pthread_exit(3), NOTES).
func endFirstThread() {
	close(firstThread)
	for {
		if _, err := os.Readlink("/proc/self/exe"); err != nil { // a zombie has none
			return
		}
		goruntime.Gosched()
	}
}
