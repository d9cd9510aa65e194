package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"testing"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// Who is cut off, in the middle of a line at that, goes on behind the last whole
// one, and says what is missing by then.
func TestEventsResume(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(control.Gateway(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen("unix", control.Gateway(dir), control.ControlSocket)
	if err != nil {
		t.Fatal(err)
	}
	text := func(seq int, kind string) string {
		return fmt.Sprintf(`{"class_uid":5019,"metadata":{"sequence":%d},"unmapped":{"kind":%q}}`+"\n", seq, kind)
	}
	var asked []string
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"audit_lines":4}`) })
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("after"))
		if len(asked) == 1 {
			fmt.Fprint(w, text(5, audit.KindNote), text(6, audit.KindNote), text(7, audit.KindNote)[:20])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, text(9, audit.KindNote), text(10, audit.KindEnd))
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })

	var out, gaps bytes.Buffer
	f := follower{w: &out, gaps: &gaps, json: true, stop: func() {}, seen: map[string]bool{}, last: map[string]progress{}}
	if err := f.followToEnd(t.Context(), &sandbox{dir: dir, Sandbox: &control.Sandbox{ID: "web"}}); err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(asked); got != "[4 6]" {
		t.Errorf("it asked for what comes behind %s, want 4 and 6", got)
	}
	if want := text(5, audit.KindNote) + text(6, audit.KindNote) + text(9, audit.KindNote) + text(10, audit.KindEnd); out.String() != want {
		t.Errorf("it printed\n%s want\n%s", out.String(), want)
	}
	if got := gaps.String(); got != "nemoclawctl: web: lines 7 to 8 are not kept any more\n" {
		t.Errorf("of what is missing it says %q", got)
	}
}
