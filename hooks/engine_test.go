package hooks

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The engine's resolver is asked, whatever programs of the sandbox listen beside
// it, and none of them is when it is gone, not even at its port.
func TestEngineIsAskedAndNobodyInItsPlace(t *testing.T) {
	w := newWorld(t)
	w.gateway()
	w.start("none")
	var e Engine
	w.impostor("127.0.0.11:53")
	if got := w.dialed(&e); got != "no engine listens at 127.0.0.11" {
		t.Errorf("without an engine: %s", got)
	}

	l := w.listen("127.0.0.11:0") // as an engine does, from outside
	go answer(l, "engine")
	for range 2 { // the second time it is known
		if got, want := w.dialed(&e), "engine "+l.Addr().String()+" from 127.0.0.1"; got != want {
			t.Errorf("with one: %s; want: %s", got, want)
		}
	}
	// For programs it is not there.
	if got := w.ask(w.inner, "tcp", l.Addr().String()); got != "refused" {
		t.Errorf("a program: %s; want: refused", got)
	}

	l.Close()
	w.impostor(l.Addr().String())
	if got := w.dialed(&e); got != "no engine listens at 127.0.0.11" {
		t.Errorf("a program at the engine's port: %s", got)
	}

	again := w.listen("127.0.0.11:0") // it was restarted
	go answer(again, "engine")
	if got := w.dialed(&e); !strings.HasPrefix(got, "engine "+again.Addr().String()) {
		t.Errorf("after its restart: %s", got)
	}
}

// dialed is what is heard on a connection of e's, or why there is none.
func (w *world) dialed(e *Engine) string {
	w.Helper()
	f, err := e.Dial(w.inner)
	if err != nil {
		return strings.TrimPrefix(err.Error(), "cannot ask the engine's resolver: ")
	}
	defer f.Close()
	c, err := net.FileConn(f)
	w.must(err)
	defer c.Close()
	w.must(c.SetReadDeadline(time.Now().Add(5 * time.Second))) // an impostor says nothing
	said, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(said))
}

// listen opens a listener of our own in the sandbox's namespace.
func (w *world) listen(addr string) *net.TCPListener {
	w.Helper()
	var l *net.TCPListener
	w.in(w.inner, func() (err error) {
		l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		return err
	})
	w.Cleanup(func() { l.Close() })
	return l
}

// impostor has a program of the sandbox, and nobody else, listen at addr.
func (w *world) impostor(addr string) {
	w.Helper()
	l := w.listen(addr)
	f, err := l.File()
	w.must(err)
	program := exec.Command("cat")
	program.ExtraFiles = []*os.File{f}
	stdin, err := program.StdinPipe()
	w.must(err)
	w.in(w.inner, program.Start)
	w.Cleanup(func() { stdin.Close(); _ = program.Wait() })
	f.Close()
	l.Close()
}
