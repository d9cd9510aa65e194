package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

var programVerbs = map[string]verb{
	// exec PROGRAM [ARG...]: what it printed.
	"exec": func(a []string) (string, error) { return output(exec.Command(a[0], a[1:]...)) },
	// exec-copy SOURCE COPY [ARG...]: a program brought along.
	"exec-copy": func(a []string) (string, error) {
		if err := copyFile(a[0], a[1]); err != nil {
			return "", err
		}
		return output(exec.Command(a[1], a[2:]...))
	},
	"copy-file": func(a []string) (string, error) { return "", copyFile(a[0], a[1]) },
	// shell-script FILE WORD...: writes a script of one command.
	"shell-script": func(a []string) (string, error) {
		return "", os.WriteFile(a[0], []byte(strings.Join(a[1:], " ")+"\n"), 0o666)
	},
	// exec-memfd SOURCE [ARG...]: a program that has no name, by its /proc link.
	"exec-memfd": func(a []string) (string, error) {
		f, err := memfdOf(a[0])
		if err != nil {
			return "", err
		}
		defer f.Close()
		cmd := exec.Command("/proc/self/fd/3", a[1:]...)
		cmd.Args[0] = a[0] // busybox goes by it
		cmd.ExtraFiles = []*os.File{f}
		return output(cmd)
	},
	// exec-empty SOURCE: execveat(2) with an empty path.
	"exec-empty": func(a []string) (string, error) {
		f, err := memfdOf(a[0])
		if err != nil {
			return "", err
		}
		defer f.Close()
		empty, argv := []byte{0}, []*byte{nil}
		_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, f.Fd(), uintptr(unsafe.Pointer(&empty[0])), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&argv[0])), unix.AT_EMPTY_PATH, 0)
		return "", e
	},
	// rewrite PID: CVE-2019-5736, writing to a process's own program.
	"rewrite": func(a []string) (string, error) { return "", writeTo("/proc/"+a[0]+"/exe", unix.O_WRONLY) },
}

// output runs a program to its end. One that could not be started gives its
// errno; one that failed, what it said.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if status, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", errors.New(status.String() + ": " + strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func memfdOf(program string) (*os.File, error) {
	in, err := os.Open(program)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "memfd")
	_, err = io.Copy(f, in)
	return f, err
}
