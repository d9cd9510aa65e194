package hooks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// quiet is for how long no link may have changed before a new one is moved: an
// engine that plugs one in goes on to configure it.
const quiet = 100 * time.Millisecond

// Follow keeps the seal while a program runs and the engine plugs links in and
// out, as `docker network connect` does: whatever comes is behind the fence
// from its first moment, and is moved to the uplink once it is up and has been
// left alone for a while. moved is told the uplink's links after each change,
// or why they are not as they should be; the fence holds then, and the next
// change is another try. Follow returns when ctx is done, or if it cannot
// follow.
func Follow(ctx context.Context, inner, uplink *os.File, ingress string, moved func([]string, error)) error {
	changes := make(chan error)
	for _, ns := range []*os.File{inner, uplink} {
		s, err := subscribe(ns)
		if err != nil {
			return fmt.Errorf("cannot follow the engine's interfaces: %w", err)
		}
		defer s.Close()
		go report(ctx, s, changes)
	}
	calm := time.NewTimer(quiet) // there may have been a change before we looked
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-changes:
			if err != nil {
				return fmt.Errorf("cannot follow the engine's interfaces: %w", err)
			}
			calm.Reset(quiet)
		case <-calm.C:
			todo, err := unplugged(inner, uplink)
			if err == nil && !todo {
				continue
			}
			var links []string
			if err == nil {
				links, err = replug(inner, uplink, ingress)
			}
			moved(links, err)
		}
	}
}

// subscribe opens a socket that tells of links in ns (rtnetlink(7)).
func subscribe(ns *os.File) (s *nl.NetlinkSocket, err error) {
	err = In(ns, func() error {
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		return err
	})
	return s, err
}

// report sends nil for each change, and the error that ends it.
func report(ctx context.Context, s *nl.NetlinkSocket, changes chan<- error) {
	for {
		_, _, err := s.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			err = nil // there were more than we could read: changes all the same
		}
		select {
		case changes <- err:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// unplugged says whether there is a link to move or to remove. One that is not
// up yet is not to be moved: that it comes up is a change again.
func unplugged(innerNS, uplinkNS *os.File) (bool, error) {
	inner, err := openSide(innerNS)
	if err != nil {
		return false, err
	}
	defer inner.Close()
	uplink, err := uplinkSide(uplinkNS)
	if err != nil {
		return false, err
	}
	defer uplink.Close()
	allowed, err := standins(inner, uplink)
	if err != nil {
		return false, err
	}
	left := cables(inner, allowed)
	for _, l := range left {
		if !isUp(l) {
			return false, nil
		}
	}
	return len(left) > 0 || len(uplink.real()) != len(uplink.plugged()), nil
}

func isUp(l netlink.Link) bool { return l.Attrs().Flags&net.FlagUp != 0 }

// replug moves what is there and seals again: engines turn IPv6 off as they
// plug in, and set routes.
func replug(inner, uplink *os.File, ingress string) ([]string, error) {
	links, err := Plug(inner, uplink, ingress)
	if err == nil {
		err = Seal(inner, uplink)
	}
	return links, err
}
