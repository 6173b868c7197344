from twisted.application.service import ServiceMaker

meshseed = ServiceMaker("meshseed", "meshproto.seed_tap", "A seed: knows where every user is.", "meshseed")
meshuser = ServiceMaker("meshuser", "meshproto.user_tap", "A user's node: sends and receives messages.", "meshuser")
