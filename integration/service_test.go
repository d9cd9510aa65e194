package integration

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runtimes runs f with a box of nemoclaw's and with one of runc's, and compares
// what it returns.
func runtimes(t *testing.T, prepare func(*box), f func(b *box) string) {
	t.Helper()
	said := map[string]string{}
	for _, name := range []string{"runc", "nemoclaw"} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			if name == "runc" {
				path, err := runc()
				if err != nil {
					lacking(t, "%v", err)
				}
				b.runtime = path
			}
			prepare(b)
			said[name] = f(b)
		})
	}
	if said["runc"] != said["nemoclaw"] {
		t.Errorf("under runc:\n%s\nunder nemoclaw:\n%s", said["runc"], said["nemoclaw"])
	}
}

// Sockets that a service manager opened for the program, and descriptors that
// the caller keeps open for it, arrive under the numbers that runc gives them.
func TestDescriptorsArePassedAsWithRunc(t *testing.T) {
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	listening, err := socket.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	kept, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	defer other.Close()
	const show = `echo $LISTEN_FDS $LISTEN_PID; for n in 3 4 5 6 7 8 9 10; do echo $n $(busybox readlink /proc/self/fd/$n); done`
	// A shell, because LISTEN_PID is the runtime's own.
	run := func(b *box, args ...string) string {
		cmd := b.command(args...)
		cmd.Args = append([]string{"/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		cmd.ExtraFiles = []*os.File{listening, kept}
		return b.finish(cmd).String()
	}
	t.Run("run", func(t *testing.T) {
		runtimes(t, func(*box) {}, func(b *box) string {
			b.spec.Process.Args = []string{"/bin/sh", "-c", show}
			b.saveSpec()
			got := run(b, "run", "--bundle", b.path("bundle"), "--preserve-fds", "1", b.id)
			if !strings.Contains(got, "1 1\n3 socket:[") || !strings.Contains(got, "\n4 pipe:[") {
				t.Errorf("the program saw %s", got)
			}
			return got
		})
	})
	t.Run("exec", func(t *testing.T) {
		runtimes(t, func(*box) {}, func(b *box) string {
			b.up()
			return run(b, "exec", "--preserve-fds", "1", b.id, "/bin/sh", "-c", show)
		})
	})
}

// A service manager hears that the program is ready, which process to watch, and
// nothing else that the program says.
func TestReadinessIsPassedOnAsWithRunc(t *testing.T) {
	for _, user := range []string{"root", "uid 1000"} {
		t.Run(user, func(t *testing.T) {
			runtimes(t, func(b *box) {
				if user != "root" {
					b.asUser()
				}
			}, func(b *box) string {
				manager := b.manager()
				k, got := b.create()
				if got.code != 0 {
					b.t.Fatalf("create: %s", got)
				}
				start := b.command("start", b.id)
				b.must(start.Start())
				alarm := time.AfterFunc(patience, func() { start.Process.Kill() })
				defer alarm.Stop()
				k.want("ok", "send-unixgram /run/notify/notify.sock STATUS=half-way")
				k.want("ok", "send-unixgram /run/notify/notify.sock READY=1")
				heard := []string{manager.hear(b), manager.hear(b), manager.hear(b)}
				if err := start.Wait(); err != nil {
					b.t.Errorf("start: %v", err)
				}
				pid := "MAINPID=" + strconv.Itoa(b.initPID()) + "\n"
				if heard[1] != pid {
					b.t.Errorf("heard %q of the process, want %q", heard[1], pid)
				}
				heard[1] = "MAINPID"
				k.want("EROFS", "create /run/notify/x") // nothing can be put there
				return strings.Join(heard, "|")
			})
		})
	}
}

// A program that ends ends the wait, and what it said but that it was ready the
// service manager does not hear.
func TestEndWithoutReadiness(t *testing.T) {
	b := newBox(t)
	manager := b.manager()
	b.spec.Process.Args = []string{"/bin/probe", "send-unixgram", "/run/notify/notify.sock", "MAINPID=1"}
	if _, got := b.create(); got.code != 0 {
		t.Fatalf("create: %s", got)
	}
	if got := b.start(); got.code != 0 {
		t.Errorf("start: %s", got)
	}
	raw, err := manager.conn.SyscallConn()
	b.must(err)
	b.must(raw.Read(func(fd uintptr) bool {
		text := make([]byte, 4096)
		if n, _, err := unix.Recvfrom(int(fd), text, unix.MSG_DONTWAIT); err != unix.EAGAIN {
			t.Errorf("it heard %q (%v)", text[:max(n, 0)], err)
		}
		return true
	}))
}

type manager struct{ conn *net.UnixConn }

// manager is a service manager: what the box's commands inherit from it.
func (b *box) manager() manager {
	b.t.Helper()
	at := b.path("manager.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	b.must(err)
	b.t.Cleanup(func() { conn.Close() })
	b.t.Setenv("NOTIFY_SOCKET", at)
	return manager{conn}
}

// hear returns the next message, and closes what came with it.
func (m manager) hear(b *box) string {
	b.t.Helper()
	b.must(m.conn.SetReadDeadline(time.Now().Add(patience)))
	text, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := m.conn.ReadMsgUnix(text, oob)
	b.must(err)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	b.must(err)
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		b.must(err)
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	return string(text[:n])
}
