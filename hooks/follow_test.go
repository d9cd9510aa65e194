package hooks

import (
	"context"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// A link that the engine plugs in while the program runs is moved like the
// first; one whose stand-in the engine takes away is removed.
func TestFollowMovesWhatComesLater(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	_, err := Plug(w.inner, w.uplink, "all")
	w.must(err)
	w.must(Seal(w.inner, w.uplink))

	ctx, cancel := context.WithCancel(t.Context())
	ended, seen := make(chan error), make(chan []string)
	go func() {
		ended <- Follow(ctx, w.inner, w.uplink, "all", func(links []string, err error) {
			if err != nil {
				t.Error(err)
			}
			seen <- links
		})
	}()

	w.plugIn("eth1", 2)
	if got, want := <-seen, []string{"eth0", "eth1"}; !slices.Equal(got, want) {
		t.Errorf("after eth1 came the uplink has %q; want %q", got, want)
	}
	if err := Verify(w.inner, w.uplink); err != nil {
		t.Error(err)
	}

	w.in(w.inner, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if got, want := <-seen, []string{"eth1"}; !slices.Equal(got, want) {
		t.Errorf("after eth0 went the uplink has %q; want %q", got, want)
	}

	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
