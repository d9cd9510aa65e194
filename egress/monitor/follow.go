package monitor

import (
	"context"
	"slices"
	"strings"
	"sync"

	"nemoclaw/specs/policy"
)

// A follower sees to links that come and go while the program runs. It begins
// once and is not begun after its end.
type follower struct {
	mu     sync.Mutex
	begun  bool
	cancel context.CancelFunc
	done   chan struct{}
}

// begin is called with m.changes held.
func (f *follower) begin(m *Monitor) {
	network := m.rules.created.Network
	if m.Follow == nil || !m.attached.OwnUplink {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.begun {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.begun, f.cancel, f.done = true, cancel, make(chan struct{})
	go func() {
		defer close(f.done)
		said := ""
		err := m.Follow(ctx, m.inner, m.uplink, network.Ingress, func(links []string, err error) {
			if err == nil {
				said = ""
				m.replugged(ctx, links)
			} else if err.Error() != said { // each try ends the same way
				said = err.Error()
				m.note(said)
			}
		})
		if err != nil {
			m.note(err.Error())
		}
	}()
}

// end returns when nothing is moved any more.
func (f *follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun = true
	if f.cancel != nil {
		f.cancel()
		<-f.done
	}
}

// replugged has the worker decide by the links that there are now.
func (m *Monitor) replugged(ctx context.Context, links []string) {
	m.changes.Lock()
	defer m.changes.Unlock()
	m.mu.Lock()
	same := slices.Equal(m.rules.links, links)
	m.mu.Unlock()
	if same || ctx.Err() != nil {
		return
	}
	what := "the engine's links are now: " + strings.Join(links, " ")
	if len(links) == 0 {
		what = "the engine has taken its last link away"
	}
	m.note(what)
	if len(links) > 0 {
		m.inbound.begin(m)
	}
	if m.rules.created.Network.Uplink == policy.UplinkNone { // they lead in only
		links = nil
	}
	if _, err := m.put(func(r *rules) { r.links, r.plugged = links, len(links) > 0 }); err != nil {
		m.note(err.Error())
	}
}
