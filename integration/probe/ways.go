package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verbatim is another probe's answer.
type verbatim string

func (v verbatim) Error() string { return string(v) }

func init() { // after that of main.go, which makes the table
	escapeVerbs := map[string]verb{
		// alone VERB [ARG...]: in a process of its own.
		"alone": func(a []string) (string, error) {
			out, err := exec.Command("/proc/self/exe", a...).Output()
			said := strings.TrimSpace(string(out))
			if got, ok := strings.CutPrefix(said, "ok"); ok {
				return strings.TrimSpace(got), nil
			}
			if said == "" && err != nil {
				return "", err
			}
			return "", verbatim(said)
		},
		// thread VERB [ARG...]: in another thread.
		"thread": func(a []string) (string, error) {
			if said := answer(a); !strings.HasPrefix(said, "ok") {
				return "", verbatim(said)
			}
			return "", nil
		},
		// open-file PATH FLAGS, and openw PATH: opens a file that exists, and touches
		// nothing.
		"open-file": func(a []string) (string, error) { return "", openOnly(a[0], int(number(a[1]))) },
		"openw":     func(a []string) (string, error) { return "", openOnly(a[0], unix.O_WRONLY) },
		// open-read PATH FLAGS: reads by what was opened so.
		"open-read": func(a []string) (string, error) {
			return withFile(a[0], int(number(a[1])), func(fd int) error {
				_, err := unix.Read(fd, make([]byte, 10))
				return err
			})
		},
		// read-some PATH: the beginning of a file of the kernel's; EOF where it is
		// masked.
		"read-some": func(a []string) (string, error) {
			return withFile(a[0], unix.O_RDONLY, func(fd int) error {
				n, err := unix.Read(fd, make([]byte, 4096))
				if err == nil && n == 0 {
					err = io.EOF
				}
				return err
			})
		},
		// read-below DIR PATH: from a directory that was opened by path only.
		"read-below": func(a []string) (string, error) {
			dir, err := unix.Open(a[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(dir)
			return readAt(dir, a[1], unix.O_RDONLY)
		},
		"chdir-read": func(a []string) (string, error) {
			if err := unix.Chdir(a[0]); err != nil {
				return "", err
			}
			return readAt(unix.AT_FDCWD, a[1], unix.O_RDONLY)
		},
		"chroot-read": func(a []string) (string, error) {
			if err := unix.Chroot(a[0]); err != nil {
				return "", err
			}
			return readAt(unix.AT_FDCWD, a[1], unix.O_RDONLY)
		},
		"map":       func(a []string) (string, error) { return mapped(a[0], unix.O_RDONLY, unix.PROT_READ) },
		"map-exec":  func(a []string) (string, error) { return mapped(a[0], unix.O_RDONLY, unix.PROT_READ|unix.PROT_EXEC) },
		"map-write": func(a []string) (string, error) { return mapped(a[0], unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE) },
		// copy FROM TO: in the kernel.
		"copy": func(a []string) (string, error) {
			return between(a[0], a[1], func(in, out int) error {
				_, err := unix.CopyFileRange(in, nil, out, nil, 10, 0)
				return err
			})
		},
		"opath-write": func(a []string) (string, error) { return reopen(a[0], unix.O_PATH) },
		// reopen-write PATH: opens for reading, and by that descriptor for writing.
		"reopen-write": func(a []string) (string, error) { return reopen(a[0], unix.O_RDONLY) },
		"allocate": func(a []string) (string, error) {
			return withFile(a[0], unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 4096) })
		},
		"openat2-write": func(a []string) (string, error) {
			fd, err := unix.Openat2(unix.AT_FDCWD, a[0], &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC})
			if err == nil {
				unix.Close(fd)
			}
			return "", err
		},
		"creat": func(a []string) (string, error) {
			fd, err := unix.Creat(a[0], 0o666)
			if err == nil {
				unix.Close(fd)
			}
			return "", err
		},
		// link-empty PATH NAME: linkat(2) with AT_EMPTY_PATH.
		"link-empty": func(a []string) (string, error) {
			return withFile(a[0], unix.O_PATH, func(fd int) error { return unix.Linkat(fd, "", unix.AT_FDCWD, a[1], unix.AT_EMPTY_PATH) })
		},
		// tmpfile-link DIR NAME: names an unnamed file.
		"tmpfile-link": func(a []string) (string, error) {
			return withFile(a[0], unix.O_TMPFILE|unix.O_WRONLY, func(fd int) error {
				return unix.Linkat(unix.AT_FDCWD, procFD(fd), unix.AT_FDCWD, a[1], unix.AT_SYMLINK_FOLLOW)
			})
		},
		// rename-flags FROM TO FLAGS
		"rename-flags": func(a []string) (string, error) {
			return "", unix.Renameat2(unix.AT_FDCWD, a[0], unix.AT_FDCWD, a[1], uint(number(a[2])))
		},
		// landlock-own VERB...: under a layer of its own that allows everything.
		"landlock-own": func(a []string) (string, error) {
			if err := ownLayer(); err != nil {
				return "", err
			}
			return verbs[a[0]](a[1:])
		},
		// layers N: so many layers of its own.
		"layers": func(a []string) (string, error) {
			for range number(a[0]) {
				if err := ownLayer(); err != nil {
					return "", err
				}
			}
			return "", nil
		},
		// add-rule FD PATH: grants everything below PATH in a ruleset.
		"add-rule": func(a []string) (string, error) { return "", addRule(int(number(a[0])), a[1]) },
		// seccomp-own VERB...: under a filter of its own that allows everything.
		"seccomp-own": func(a []string) (string, error) {
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return "", err
			}
			code := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
			prog := unix.SockFprog{Len: 1, Filter: &code[0]}
			if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
				return "", e
			}
			return verbs[a[0]](a[1:])
		},
		// join-pidfd PID KINDS: setns(2) by a process.
		"join-pidfd": func(a []string) (string, error) {
			fd, err := unix.PidfdOpen(int(number(a[0])), 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return "", unix.Setns(fd, int(number(a[1])))
		},
		// exec-opath PROGRAM [ARG...]: by a descriptor opened by path only.
		"exec-opath": func(a []string) (string, error) {
			fd, err := unix.Open(a[0], unix.O_PATH, 0)
			if err != nil {
				return "", err
			}
			f := os.NewFile(uintptr(fd), a[0])
			defer f.Close()
			cmd := exec.Command("/proc/self/fd/3", a[1:]...)
			cmd.Args[0], cmd.ExtraFiles = a[0], []*os.File{f}
			return output(cmd)
		},
		// script FILE INTERPRETER: writes a script and runs it.
		"script": func(a []string) (string, error) {
			if err := os.WriteFile(a[0], []byte("#!"+a[1]+"\n"), 0o755); err != nil {
				return "", err
			}
			return output(exec.Command(a[0]))
		},
		// rewrite-own PROGRAM COPY: copies a program and writes to the copy.
		"rewrite-own": func(a []string) (string, error) {
			if err := copyFile(a[0], a[1]); err != nil {
				return "", err
			}
			return "", writeTo(a[1], unix.O_WRONLY)
		},
		"no-new-privs": func(a []string) (string, error) {
			return "", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, number(a[0]), 0, 0, 0)
		},
		"unprivileged": func([]string) (string, error) {
			n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
			return itoa(n), err
		},
		"bounding": func(a []string) (string, error) {
			n, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, number(a[0]), 0, 0, 0)
			return itoa(n), err
		},
		"raise-capabilities": func([]string) (string, error) {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			all := [2]unix.CapUserData{{Effective: 1 << 21, Permitted: 1 << 21}}
			return "", unix.Capset(&header, &all[0])
		},
		// left-open [PID]: descriptors beyond the standard ones.
		"left-open": func(a []string) (string, error) {
			open, err := descriptors(append(a, "self")[0])
			var more []string
			for f := range strings.FieldsSeq(open) {
				if n, _, _ := strings.Cut(f, "="); len(n) > 1 || n > "2" {
					more = append(more, f)
				}
			}
			if len(more) == 0 {
				more = []string{"none"}
			}
			return strings.Join(more, " "), err
		},
		"unix-listen":   func(a []string) (string, error) { return "", listenUnix(a[0]) },
		"unix-abstract": func(a []string) (string, error) { return "", listenUnix("@" + a[0] + itoa(os.Getpid())) },
		"credentials":   credentials,
		"terminal":      terminalIoctl,
	}
	enlist(escapeVerbs)
}

func withFile(path string, flags int, do func(fd int) error) (string, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return "", do(fd)
}

func between(from, to string, do func(in, out int) error) (string, error) {
	return withFile(from, unix.O_RDONLY, func(in int) error {
		_, err := withFile(to, unix.O_WRONLY|unix.O_CREAT, func(out int) error { return do(in, out) })
		return err
	})
}

func mapped(path string, flags, protection int) (string, error) {
	return withFile(path, flags, func(fd int) error {
		m, err := unix.Mmap(fd, 0, 4096, protection, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		return unix.Munmap(m)
	})
}

func reopen(path string, flags int) (string, error) {
	return withFile(path, flags, func(fd int) error { return openOnly(procFD(fd), unix.O_WRONLY) })
}

// everything is the rights of Landlock's first ABI.
const everything = 1<<13 - 1

func ownLayer() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	attr := struct{ fs uint64 }{everything}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	if err := addRule(int(fd), "/"); err != nil {
		return err
	}
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return e
	}
	return nil
}

func addRule(ruleset int, path string) error {
	_, err := withFile(path, unix.O_PATH, func(fd int) error {
		rule := unix.LandlockPathBeneathAttr{Allowed_access: everything, Parent_fd: int32(fd)}
		_, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	})
	return err
}

func listenUnix(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if path[0] != '@' {
		defer os.Remove(path)
	}
	return errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
}

// credentials PID: says on a socket that it is another process.
func credentials(a []string) (string, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	cred := unix.UnixCredentials(&unix.Ucred{Pid: int32(number(a[0])), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
	return "", unix.Sendmsg(pair[0], []byte("x"), cred, nil, 0)
}

// terminalIoctl makes a terminal and asks of its other end what the argument
// says.
func terminalIoctl(a []string) (string, error) {
	return withFile("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		line, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
		if e != 0 {
			return e
		}
		defer unix.Close(int(line))
		b := [64]byte{'x'}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, line, number(a[0]), uintptr(unsafe.Pointer(&b[0]))); e != 0 {
			return e
		}
		return nil
	})
}
