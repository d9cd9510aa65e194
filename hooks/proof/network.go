package proof

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"nemoclaw/hooks"
	"nemoclaw/specs/policy"
)

// network looks at the two namespaces.
func (b *box) network() []Layer {
	return []Layer{b.fence(), b.uplinkLayer()}
}

func (b *box) fence() Layer {
	l := b.layer("fence", "default drop for every protocol and interface; no interface, no route that leads out; everything steered to the gateway")
	mode := b.policy.Network.Uplink
	own := mode == policy.UplinkAuto || mode == policy.UplinkNone
	var err error
	switch {
	case b.life == Ended:
		return l
	case b.life == NotYet:
		l.Active = "the rules are on; at start the cable is moved and the namespace sealed"
		err = hooks.Fenced(b.inner)
	case own && b.uplink == nil:
		l.fault("the uplink is not pinned any more, so its stand-ins cannot be told from cables")
		return l
	case own:
		err = hooks.Verify(b.inner, b.uplink)
	default:
		err = hooks.Verify(b.inner, nil)
	}
	l.Verified = "interfaces, addresses, routes and each nftables rule listed in the namespace of the first process, compared with what create installs"
	if err != nil {
		l.fault("%v", err)
	} else if l.Active == "" {
		l.Active = "as it was put up and sealed"
	}
	return l
}

func (b *box) uplinkLayer() Layer {
	mode := b.policy.Network.Uplink
	l := b.layer("uplink", fmt.Sprintf("network.uplink %s, ingress %s", mode, b.policy.Network.Ingress))
	if b.life == Ended {
		return l
	}
	if b.uplink == nil {
		l.fault("the uplink is not pinned any more: %s is gone", b.dir)
		return l
	}
	l.Verified = "interfaces and routes listed in the pinned namespace"
	if mode == policy.UplinkHost {
		b.hostUplink(&l)
		return l
	}
	if mode == policy.UplinkAuto || mode == policy.UplinkNone {
		l.Verified += ", its nftables rules compared"
		if err := hooks.VerifyUplink(b.uplink, b.policy.Network.Ingress); err != nil {
			l.fault("%v", err)
		}
	}
	ways, err := hooks.Ways(b.uplink)
	if err != nil {
		l.hide("where it leads: %v", err)
		return l
	}
	var words []string
	for _, w := range ways {
		text := w.Name + " " + strings.Join(w.Addresses, " ")
		if len(w.Gateways) > 0 {
			text += " by way of " + strings.Join(w.Gateways, " ")
		}
		words = append(words, text)
	}
	l.Active = strings.Join(words, "; ")
	switch {
	case len(words) == 0:
		l.Active = "no interface: every connection is refused"
	case mode == policy.UplinkNone:
		l.Active += ": for connections from outside only, every other one is refused"
	}
	return l
}

// hostUplink checks that the pin is the host's own network: that of its first
// process, or ours where the kernel keeps that from us.
func (b *box) hostUplink(l *Layer) {
	own, err := hooks.OpenNetns("/proc/1/ns/net")
	if errors.Is(err, os.ErrPermission) {
		own, err = hooks.OpenNetns("/proc/self/ns/net")
	}
	if err != nil {
		l.hide("whether it is the host's: %v", err)
		return
	}
	defer own.Close()
	same, err := hooks.SameNetns(own, b.uplink)
	switch {
	case err != nil:
		l.hide("whether it is the host's: %v", err)
	case !same:
		l.fault("it is another namespace than the host's")
	default:
		l.Active = "the host's own network"
	}
}
